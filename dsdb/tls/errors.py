"""What can be wrong with certificates, as exceptions whose message is a sentence without its full stop."""


class CertificateError(Exception):
    """Files of certificates are missing, unusable, or do not fit each other."""


class HandshakeError(Exception):
    """The two ends do not trust each other, or one of them does not speak TLS."""
