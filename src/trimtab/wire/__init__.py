"""The edge that clients touch: the ASGI application and its request-scoped parts."""
