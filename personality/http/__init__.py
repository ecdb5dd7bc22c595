"""HTTP as Docker's clients speak it: a server on asyncio and h11 that knows nothing about Docker's endpoints."""
