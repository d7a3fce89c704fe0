"""Ray clusters: connecting, the dispatcher, the job API, a cluster on one machine."""
