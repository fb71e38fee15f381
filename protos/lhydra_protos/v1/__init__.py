"""The wire contract of Lhydra: the .proto files and the code generated from them."""
