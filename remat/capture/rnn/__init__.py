"""RNN layers as opaque ops: one for the forward and one for the backward."""
