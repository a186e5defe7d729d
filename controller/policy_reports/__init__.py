"""Reports about policies: which select a pod, and why a connection may pass or not.

The verdict comes from the view that is compiled into flows; the words come from the drafts.
"""
