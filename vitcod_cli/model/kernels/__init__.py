"""How attention is computed: the same function, in the way that suits device, dtype, mask and purpose."""
