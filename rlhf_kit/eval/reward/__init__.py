"""Reward models: do they rank as people do, and what do they score?"""
