"""Choose, train and build: the supernet, the search over a device's costs, and the model that comes out of it."""
