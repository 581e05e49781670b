"""Pure decisions: no asyncio, no clock, no chance, no logging. Time and randomness are arguments."""
