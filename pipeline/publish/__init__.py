"""From a finished stage to a model folder, or a hub repository, that anybody can use."""
