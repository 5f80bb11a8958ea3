"""Making steering vectors from contrasting texts, in small pieces between the steps of everybody else's requests."""
