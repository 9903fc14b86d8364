"""What every process needs: errors, JSON, log lines, versions, and the messages between router and worker."""
