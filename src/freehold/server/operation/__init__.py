"""Operating the server: who may ask, how much, over which connections; what was asked, as metrics and logs."""
