"""Model -> annotated problem: capture, lowering to storages, costs."""
