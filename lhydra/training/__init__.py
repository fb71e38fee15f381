"""The only room with torch: the model, its training, and the export to ONNX."""
