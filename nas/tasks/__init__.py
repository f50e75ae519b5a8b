"""What a network learns, and how an answer is judged."""
