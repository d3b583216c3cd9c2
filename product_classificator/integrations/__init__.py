"""Heads where people already work: on the Hugging Face hub, in scikit-learn, in MLflow."""
