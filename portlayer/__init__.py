"""The host service of a virtual container host: storage, network and execution over gRPC."""

import os

# This process starts hypervisors. gRPC's handlers around fork() serve children that go on using gRPC; ours execute
# another program at once, and a fork while another thread is within gRPC must not fail.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
