"""What benchmarks/card.py does on a card: `cases` lists it, `run` does it one case after the other, `page` says what came out."""
