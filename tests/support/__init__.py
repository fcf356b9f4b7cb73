"""What several tests share: cases, references, generated inputs."""
