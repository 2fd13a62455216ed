"""What a user asks for: the request, the options, the word pairs."""
