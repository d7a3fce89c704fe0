"""Ray clusters: connecting, the job API, a cluster on one machine."""
