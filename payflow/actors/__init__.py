"""The actors of the payments process. They know ports, messages and the runtime, never adapters or each other."""
