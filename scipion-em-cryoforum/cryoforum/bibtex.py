"""
@article{Chung2023,
title = "Cryo-forum: A framework for orientation recovery with uncertainty measure with the application in cryo-EM image analysis",
journal = "Journal of Structural Biology",
year = "2023",
doi = "https://doi.org/10.48550/arXiv.2307.09847",
url = "https://arxiv.org/abs/2307.09847",
author = "Chung, Szu-Chi"
}

@inproceedings{Nashed2021,
title = "CryoPoseNet: End-to-End Simultaneous Learning of Single-particle Orientation and 3D Map Reconstruction from Cryo-electron Microscopy Data",
booktitle = "IEEE/CVF International Conference on Computer Vision Workshops",
year = "2021",
doi = "https://doi.org/10.48550/arXiv.2107.02958",
url = "https://arxiv.org/abs/2107.02958",
author = "Nashed, Youssef S. G. and Poitevin, Frederic and Gupta, Harshit and Woollard, Geoffrey and Kagan, Michael and Yoon, Chun Hong and Ratner, Daniel"
}
"""
