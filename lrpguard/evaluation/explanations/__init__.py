"""Is SmoothLRP a better explanation than LRP? Metrics, measurement, card and page."""
