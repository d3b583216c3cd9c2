"""Files of other people's servers, fetched without trusting them."""
