"""Text to stages: SQL is parsed, bound to the catalogue, planned, and executed against Protocols of what lies below.

Knows storage's codecs; knows no node, range or socket.  The line is `parse` ▸ `bind` ▸ `plan` ▸ `execute`; `ports` says what
execution needs from below at run time.
"""
