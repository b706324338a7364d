"""Names of common functions that Postgres has and dsdb has not, so that the error can say which of the two a name is."""

_NAMES = """
    array_agg array_append array_cat array_dims array_length array_lower array_ndims array_position array_positions array_prepend
    array_remove array_replace array_to_string array_upper cardinality string_to_array unnest generate_series generate_subscripts
    json_agg jsonb_agg json_build_object jsonb_build_object json_build_array jsonb_build_array json_object_agg jsonb_object_agg
    json_array_length jsonb_array_length json_extract_path jsonb_extract_path json_typeof jsonb_typeof to_json to_jsonb row_to_json
    jsonb_set jsonb_pretty jsonb_path_query json_each jsonb_each json_array_elements jsonb_array_elements xmlagg
    regexp_match regexp_matches regexp_split_to_array regexp_split_to_table regexp_count regexp_instr regexp_substr
    to_char to_number to_date format quote_ident quote_nullable convert_from convert_to convert parse_ident similar_to_escape
    nextval currval setval lastval pg_sleep clock_timestamp timeofday pg_backend_pid pg_size_pretty pg_column_size
    pg_table_size pg_relation_size pg_total_relation_size pg_database_size obj_description col_description has_table_privilege
    set_config current_setting inet_client_addr txid_current grouping mode rank_disc
    range_agg int4range numrange tsrange daterange lower_inc upper_inc isempty crypt digest gen_salt get_bit set_bit get_byte
    set_byte ts_rank to_tsvector to_tsquery plainto_tsquery width_bucket_array setseed isfinite
    pg_advisory_lock pg_advisory_lock_shared pg_advisory_unlock pg_advisory_unlock_all pg_advisory_unlock_shared pg_advisory_xact_lock
    pg_advisory_xact_lock_shared pg_try_advisory_lock pg_try_advisory_lock_shared pg_try_advisory_xact_lock
    pg_try_advisory_xact_lock_shared
    normalize is_normalized unistr host netmask masklen network scale min_scale trim_scale
"""
POSTGRES_FUNCTIONS = frozenset(_NAMES.split())
