//! Keeps the zone as the informers see Services and EndpointSlices.
