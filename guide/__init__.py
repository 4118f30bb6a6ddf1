"""The guide: the small MoE that ships with flashmoe-tui. Corpus, training, export and evaluation; never imported by the app."""
