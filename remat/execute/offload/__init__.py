"""Moving values out of the device and back while compute goes on: what Offload and Fetch do when a plan runs."""
