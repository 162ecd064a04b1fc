"""What runs the stages: the `mill` command. The only package that knows DVC, Git or Prefect."""
