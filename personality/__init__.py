"""The Docker personality: Docker's HTTP API in front, the port layer's gRPC services behind.

It keeps no state of its own: whatever a client may ask about lives in the port layer, so that it can be restarted, and
several can serve one VCH at the same time.
"""
