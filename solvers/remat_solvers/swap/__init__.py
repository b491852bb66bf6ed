"""Moving values between the device and the host: one published method per file or package."""
