"""What OpenSSL means, in a sentence: the one table for nodes and drivers."""

import ssl

_VERIFY = {
    9: "is not valid yet",
    10: "has expired",
    18: "signed itself",
    19: "is of another authority than ca.crt has",
    20: "is of another authority than ca.crt has",
    21: "is of another authority than ca.crt has",
    7: "is of another authority than ca.crt has",
    26: "is not meant for this end of a connection (a user's certificate is no node's)",
}
"""What is wrong with the other side's certificate, by OpenSSL's number of it."""
_HOST_MISMATCH = (62, 64)

_REASONS = {
    "ALERT_CERTIFICATE_REQUIRED": "the other side wants a certificate, and was given none",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the other side gave no certificate",
    "ALERT_CERTIFICATE_EXPIRED": "the other side refuses our certificate: it has expired",
    "ALERT_CERTIFICATE_REVOKED": "the other side refuses our certificate: it is revoked",
    "ALERT_UNKNOWN_CA": "the other side refuses our certificate: it is of an authority that it does not know",
    "ALERT_UNSUPPORTED_CERTIFICATE": "the other side refuses our certificate: it is not meant for this",
    "ALERT_BAD_CERTIFICATE": "the other side refuses our certificate",
    "ALERT_CERTIFICATE_UNKNOWN": "the other side refuses our certificate",
    "ALERT_ACCESS_DENIED": "the other side refuses our certificate",
    "ALERT_DECRYPT_ERROR": "the other side refuses our certificate: its signature does not fit",
    "ALERT_PROTOCOL_VERSION": "the two sides share no version of TLS",
    "UNSUPPORTED_PROTOCOL": "the two sides share no version of TLS",
    "WRONG_VERSION_NUMBER": "the other side does not speak TLS",
    "RECORD_LAYER_FAILURE": "the other side does not speak TLS",
    "PACKET_LENGTH_TOO_LONG": "the other side does not speak TLS",
    "HTTP_REQUEST": "the other side does not speak TLS",
    "KEY_VALUES_MISMATCH": "the key is another certificate's",
    "NO_START_LINE": "it has no certificate or no key",
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": "bytes were changed on their way",
    "UNEXPECTED_EOF_WHILE_READING": "the other side hung up",
}
"""By the end of OpenSSL's own name of the error: its beginning differs between versions."""


def describe(error: ssl.SSLError, *, host: str | None = None) -> str:
    """Say what an error of TLS means.  host: by whose name the other side was asked for."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _HOST_MISMATCH:
            return f"the other side's certificate does not name {host or 'its host'}"
        return f"the other side's certificate {_VERIFY.get(error.verify_code, f'is not accepted: {error.verify_message}')}"
    reason = (error.reason or "").replace(" ", "_").upper()
    for ending, sentence in _REASONS.items():
        if reason.endswith(ending):
            return sentence
    return f"TLS failed: {error.reason or error}"
