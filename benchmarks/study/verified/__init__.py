"""Panel c of the study: self-play with a verifier, against supervised and rejection-sampling fine-tuning."""
