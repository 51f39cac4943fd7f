"""The ACME door: RFC 8555, RFC 8737, RFC 8738, RFC 9773, and the profiles extension."""
