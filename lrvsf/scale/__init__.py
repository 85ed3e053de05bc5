"""The other rooms' functions on the machines of a Ray cluster: no rule of its own. Needs the extra [ray], but for
`faiss_shards`."""
