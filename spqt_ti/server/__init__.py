"""One model over HTTP, as OpenAI's API, and a page to talk to it (extra `server`)."""
