//! Keeps the kernel as the informers see Services, EndpointSlices and the pods of this node.
