"""The local scheduler beside asyncio, trio and anyio: what a switch, a fiber, a lock and an item cost."""
