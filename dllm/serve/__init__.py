"""A server that speaks OpenAI's API, and a page on which its answers denoise."""
