"""Success in closed loop: a policy acts in an environment, episode by episode."""
