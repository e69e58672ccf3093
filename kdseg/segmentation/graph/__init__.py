"""The region graph of fragments: contacts, affinities, and what else is known of each edge."""
