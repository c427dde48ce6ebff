"""What runs on other machines as it is: every kit carries this folder.

It needs Python 3.8 or newer, numpy and, to run a kit, ONNX Runtime; nothing of the toolkit.
"""
