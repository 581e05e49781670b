"""payflow takes payments over HTTP, keeps them safe, publishes them to Kafka and books each once."""

__version__ = "0.1.0"
