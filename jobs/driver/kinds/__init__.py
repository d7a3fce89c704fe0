"""The kinds of job: what each plans, needs and concludes."""
