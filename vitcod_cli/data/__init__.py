"""Images in: data sets, labels, transforms, loaders."""
