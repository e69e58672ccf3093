"""Networks over volumes."""
