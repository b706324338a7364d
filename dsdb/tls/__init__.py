"""Certificates and TLS, for both ends and without I/O on sockets: nodes (`dsdb.env.tls`) and the driver (`dsdb.driver`) bring the bytes.

A certificate says in a URI among its alternative names what its holder is: `dsdb:node`, or `dsdb:user:NAME`.  `files` knows the names
in a directory of certificates, `identity` reads what one says, `contexts` decides what is accepted, `channel` encrypts, `sentences` says
what went wrong, `credentials` holds a node's own and reads them again when they change, `authority` makes them (for `dsdb cert`).
"""
