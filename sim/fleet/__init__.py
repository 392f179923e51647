"""A fleet: replicas of one engine behind a router, each with its own pool, on one clock."""
