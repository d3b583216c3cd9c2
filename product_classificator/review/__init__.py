"""The review page: doubtful products are decided by people, by keyboard, and learned from."""
